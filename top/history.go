package top

// The last minutes of each guest, for sparklines and rates.

import (
	"time"

	"understudy/status/samples"
)

// keep is how many looks are remembered: three minutes of them, and more than
// the widest terminal shows.
const keep = 512

// point is one guest at one look. What is not known is NaN-free: known says so.
type point struct {
	known             bool
	pause, lag        time.Duration
	dirty, held       uint64
	wire, raw         uint64 // totals
	sentRate, rawRate float64
	// What else is known: the two rates, the pause, the lag, the pages.
	rates, pauses, lags, pages bool
}

// history is one guest's, the newest last.
type history struct {
	at     time.Time
	points []point
	filled bool // the newest was not looked at: its totals are not known
}

// begin fills in what the hosts remember of the time before the first look, which
// is at, as if there had been one every so often.
func (h *history) begin(at time.Time, every time.Duration, past []samples.Series) {
	within := 2 * max(every, samples.Rings[0].Step)
	for ago := (keep - 1) * every; ago > 0; ago -= every {
		m, known := samples.At(past, ago, within)
		if !known {
			if len(h.points) > 0 {
				h.points = append(h.points, point{})
			}
			continue
		}
		pause, lag, dirty, held := m.Value("pause_p50_ns"), m.Value("lag_p50_ns"), m.Value("dirty_pages"), m.Value("held_bytes")
		sent, raw := m.Value("sent_bytes_per_second"), m.Value("raw_bytes_per_second")
		p := point{known: true, pauses: pause.Known(), lags: lag.Known(), pages: dirty.Known(), rates: sent.Known() && raw.Known()}
		if p.pauses {
			p.pause = time.Duration(pause)
		}
		if p.lags {
			p.lag = time.Duration(lag)
		}
		if p.pages {
			p.dirty = uint64(max(0, dirty))
		}
		if held.Known() {
			p.held = uint64(max(0, held))
		}
		if p.rates {
			p.sentRate, p.rawRate = float64(sent), float64(raw)
		}
		h.points = append(h.points, p)
	}
	h.at, h.filled = at.Add(-every), true
}

// add notes a look.
func (h *history) add(at time.Time, r row) {
	var p point
	if r.at != nil {
		s := r.at.Primary
		p = point{known: true, pauses: s.Pause.Samples > 0, lags: s.Lag.Samples > 0, pages: s.Pause.Samples > 0, pause: s.Pause.Median, lag: s.Lag.Median, dirty: s.Dirty, held: uint64(max(0, s.HeldBytes)), wire: s.Totals.WireBytes, raw: s.Totals.RawBytes}
		if n := len(h.points); n > 0 {
			last, elapsed := h.points[n-1], at.Sub(h.at).Seconds()
			if last.known && !h.filled && p.wire >= last.wire && p.raw >= last.raw && elapsed > 0 { // else another primary began to count
				p.sentRate, p.rawRate, p.rates = float64(p.wire-last.wire)/elapsed, float64(p.raw-last.raw)/elapsed, true
			}
		}
	}
	h.at, h.filled = at, false
	h.points = append(h.points, p)
	if len(h.points) > keep {
		h.points = h.points[1:]
	}
}

// last is the newest point.
func (h *history) last() point {
	if h == nil || len(h.points) == 0 {
		return point{}
	}
	return h.points[len(h.points)-1]
}

// series are the values of the last n points; -1 for what is not known.
func (h *history) series(n int, of func(p point) (float64, bool)) []float64 {
	out := make([]float64, 0, n)
	if h == nil {
		return out
	}
	for _, p := range h.points[max(0, len(h.points)-n):] {
		if v, ok := of(p); ok {
			out = append(out, v)
		} else {
			out = append(out, -1)
		}
	}
	return out
}

var (
	blocks = []rune("▁▂▃▄▅▆▇█")
	plain  = []rune("._-=+*%#")
)

// sparkline draws values between 0 and their greatest; a gap is a space.
func sparkline(values []float64, marks []rune) string {
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	out := make([]rune, len(values))
	for i, v := range values {
		switch {
		case v < 0:
			out[i] = ' '
		case most == 0:
			out[i] = marks[0]
		default:
			out[i] = marks[min(len(marks)-1, int(v/most*float64(len(marks))))]
		}
	}
	return string(out)
}
