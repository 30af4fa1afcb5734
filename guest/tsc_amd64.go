package guest

import "time"

// rdtsc reads the processor's time stamp counter.
func rdtsc() uint64

// TSCKHz measures the frequency of this host's time stamp counter, which an
// emulated guest sees as its own, in kHz. It takes 20 ms.
func TSCKHz() int {
	at1, tsc1 := sampleTSC()
	time.Sleep(20 * time.Millisecond)
	at2, tsc2 := sampleTSC()
	return int(float64(tsc2-tsc1) / float64(at2.Sub(at1)) * 1e6)
}

// sampleTSC reads clock and counter as close together as ten attempts get them.
func sampleTSC() (at time.Time, tsc uint64) {
	best := time.Hour
	for range 10 {
		before := time.Now()
		now := rdtsc()
		if gap := time.Since(before); gap < best {
			best, at, tsc = gap, before.Add(gap/2), now
		}
	}
	return at, tsc
}
