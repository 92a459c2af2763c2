"""Many runs, or one to look at: campaigns over processes, narrations, shrinking, and the commands' output."""
