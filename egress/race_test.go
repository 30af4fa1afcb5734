//go:build race

package egress

// raceEnabled: the race detector allocates on its own.
const raceEnabled = true
