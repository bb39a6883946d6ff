export default {
  // Its page sends statistics of use to its own address, where nobody takes them.
  ignored: /favicon|\.map$|^405 POST [^ ]+\d\/$/,
};
