"""What finished work leaves on disk: records, rows, the store, digests."""
