"""The dispatcher: sends in over HTTP and `push-upstream`, records out on the topics of just the nodes concerned."""
