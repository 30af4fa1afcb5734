//go:build race

package simulation

// normalSeeds is how many seeds a test under the race detector plays: it is
// some ten times slower, and all of a world is on one goroutine anyway.
const normalSeeds = 100
