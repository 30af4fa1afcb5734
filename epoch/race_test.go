//go:build race

package epoch

// raceEnabled: the race detector makes sync.Pool, and so s2, lose a quarter of
// what is put back.
const raceEnabled = true
