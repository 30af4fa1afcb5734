//go:build !race

package crash

// fewer: without the race detector all kinds of worlds are played.
const fewer = false
