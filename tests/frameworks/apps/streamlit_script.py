import streamlit as st
from saying import got, state

session = st.session_state
session.setdefault("count", 0)
if st.button("more"):
    session.count += 1
st.text(state(session.count))
if file := st.file_uploader("file"):
    st.text(got(file.getvalue()))
st.download_button("download", state(session.count), file_name="state.txt")
