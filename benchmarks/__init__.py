"""What balloond costs and how fast it is, measured beside the kernel's limit and its peers."""
