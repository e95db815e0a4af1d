"""Networks and traffic that are made up, from one random stream."""
