"""What is learned: batch layout, loss and metrics of each application."""
