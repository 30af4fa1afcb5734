//go:build race

package simulation

// normalSeeds is how many seeds a test under the race detector plays: it is
// some ten times slower, and all of a world is on one goroutine anyway.
const normalSeeds = 1000

// teethSeeds is how many seeds a breach may need; those that need more are
// left to the test without the race detector.
const teethSeeds = 300
