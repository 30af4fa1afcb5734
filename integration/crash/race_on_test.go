//go:build race

package crash

// fewer: under the race detector a world takes ten times as long, and each step
// and side are crossed with a sixth of the kinds of worlds, in turn.
const fewer = true
