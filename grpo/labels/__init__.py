"""The outcomes of both actions from one instant, and the rows that hold them. Free of torch and of rewards."""
