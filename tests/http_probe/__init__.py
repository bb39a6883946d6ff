"""Raw requests that a server must take, refuse or leave alone: cases, a runner, apps."""
