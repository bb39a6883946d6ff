import os
from pathlib import Path

import sticky

os.environ["STREAMLIT_SERVER_COOKIE_SECRET"] = sticky.secret("streamlit").hex()

import streamlit as st

app = st.App(Path(__file__).with_name("streamlit_script.py"))
