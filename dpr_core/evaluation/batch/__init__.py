"""The Batch API transport: requests in files, half the price, replies within a day."""
