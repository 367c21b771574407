/* base1/cockpit.js is a plain script, which puts its one name into the window. */

export default window.cockpit;
