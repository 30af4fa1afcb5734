package cell

// This file puts together what stock Remus has said of its steps, and what its stream
// has brought: the steps of a checkpoint are the n-th of each kind, as its records are
// the n-th checkpoint.

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// StockEpochs makes epochs of the lines of ../stock ("request", "suspended" or
// "resumed", and nanoseconds) and of the stream's checkpoints. Steps of a checkpoint
// whose stream was not read to its end are left out.
func StockEpochs(said string, all []Checkpoint) ([]Epoch, error) {
	times := map[string][]int64{}
	for line := range strings.Lines(said) {
		what, at, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("stock says %q", line)
		}
		times[what] = append(times[what], n)
	}
	for _, what := range []string{"request", "suspended", "resumed"} {
		if len(times[what]) < len(all) {
			return nil, fmt.Errorf("stock says %q %d times, of %d checkpoints", what, len(times[what]), len(all))
		}
	}
	epochs := make([]Epoch, len(all))
	for i, c := range all {
		request, suspended, resumed := times["request"][i], times["suspended"][i], times["resumed"][i]
		if request > suspended || suspended > resumed || i > 0 && request < times["resumed"][i-1] {
			return nil, fmt.Errorf("checkpoint %d: asked at %d, suspended at %d, resumed at %d", i, request, suspended, resumed)
		}
		epochs[i] = Epoch{Stood: suspended, Suspend: time.Duration(suspended - request), Pause: time.Duration(resumed - suspended), Pages: c.Pages, Bytes: c.Bytes}
	}
	return epochs, nil
}
