package main

// Continuous protection of a guest that works on its disk, with and without
// leaving out what is on it.

import (
	"context"
)

func (b *savedBench) measureProtection(ctx context.Context) ([]ProtectedRow, error) {
	return nil, ctx.Err()
}

func compareProtection([]ProtectedRow) []ProtectedComparison { return nil }

func printProtection([]ProtectedRow, []ProtectedComparison, func(string), func(string, ...any)) {}
