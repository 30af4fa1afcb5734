//go:build !race

package simulation

// normalSeeds is how many seeds a normal test plays.
const normalSeeds = 3000

// teethSeeds is how many seeds a breach may need.
const teethSeeds = 3000
