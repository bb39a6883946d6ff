"""The whole server, disturbed for minutes under mixed load, with each answer checked by an oracle.

python -m tests.soak            everything at once, on each worker class in turn
python -m tests.soak.deploy     one reload after another, with two hundred Socket.IO clients
python -m tests.soak.floods     thousands of connections, and what other slots' clients notice
"""
