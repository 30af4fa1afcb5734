//go:build !race

package simulation

// normalSeeds is how many seeds a normal test plays.
const normalSeeds = 3000
