"""The outcomes of every open action from one instant, and the rows that hold them. Free of torch and of rewards."""
