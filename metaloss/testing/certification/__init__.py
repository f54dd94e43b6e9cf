"""Certificates: the meta-gradients of all components against finite differences."""
