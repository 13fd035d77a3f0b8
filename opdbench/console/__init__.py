"""What a person sees while a run goes on: progress bars, plain lines, trackers."""
