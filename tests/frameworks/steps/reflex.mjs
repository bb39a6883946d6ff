export default { comesBack: true };
