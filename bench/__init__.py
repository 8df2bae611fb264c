"""What the operator costs, measured on real servers. Each module is one benchmark and can be run by itself."""
