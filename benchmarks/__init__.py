"""What a step of meta-learning costs, beside plain training and beside other libraries."""
