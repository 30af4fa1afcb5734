package drill

// Plots of a report, as the coordinates of an SVG 1000 units wide.

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"understudy/ownership"
)

// The drawing's borders.
const (
	plotLeft, plotRight = 70.0, 985.0
	plotTop, plotBottom = 14.0, 170.0
	laneHeight          = 34.0
)

// plot is one figure.
type plot struct {
	ID      string // of its elements
	Title   string
	Caption string // what it shows, in words
	Height  float64
	Base    float64 // the lowest y of the drawing
	XTicks  []tick
	YTicks  []tick
	Lines   []polyline
	Bands   []band
	Marks   []spot
	Lanes   []tick
}

type tick struct {
	At    float64
	Label string
}

// polyline is one host's line; Style numbers its look.
type polyline struct {
	Name  string
	Style int
	Path  string
}

// band is a time in which something was so.
type band struct {
	X, Width, Y, Height float64
	Class, Label        string
	Wide                bool // the label has room in it
}

// spot is one thing that happened.
type spot struct {
	X, Y  float64
	Class string
	Label string
}

// x is where a time is drawn.
func (r *Report) x(t time.Duration) float64 {
	whole := max(r.span(), time.Millisecond)
	f := min(max(float64(t)/float64(whole), 0), 1)
	return round(plotLeft + f*(plotRight-plotLeft))
}

// span is the time that the plots show.
func (r *Report) span() time.Duration {
	last := r.Took
	for _, s := range r.Timeline {
		last = max(last, s.At)
	}
	return last
}

func round(v float64) float64 { return math.Round(v*10) / 10 }

// frame is a plot with its time axis.
func (r *Report) frame(id, title string, bottom float64) plot {
	p := plot{ID: id, Title: title, Height: bottom + 30, Base: bottom}
	whole := r.span()
	step := niceStep(whole.Seconds() / 6)
	for s := 0.0; s <= whole.Seconds()+step/100; s += step {
		p.XTicks = append(p.XTicks, tick{r.x(time.Duration(s * float64(time.Second))), fmt.Sprintf("%gs", round3(s))})
	}
	return p
}

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// niceStep is 1, 2 or 5 times a power of ten, at least v.
func niceStep(v float64) float64 {
	if !(v > 0) || math.IsInf(v, 0) {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, f := range []float64{1, 2, 5} {
		if f*unit >= v {
			return f * unit
		}
	}
	return 10 * unit
}

// timelinePlot has a lane for each host and a band for each phase.
func (r *Report) timelinePlot() (plot, bool) {
	if len(r.Timeline) == 0 {
		return plot{}, false
	}
	var hosts []ownership.HostID
	for _, s := range r.Timeline {
		if !slices.Contains(hosts, s.Host) && len(hosts) < 8 {
			hosts = append(hosts, s.Host)
		}
	}
	slices.Sort(hosts)
	bottom := plotTop + 26 + laneHeight*float64(len(hosts))
	p := r.frame("timeline", "timeline", bottom)
	for i, h := range hosts {
		p.Lanes = append(p.Lanes, tick{plotTop + 26 + laneHeight*(float64(i)+0.5), clip(string(h), 16)})
	}
	var words []string
	for i, s := range r.Timeline {
		lane := slices.Index(hosts, s.Host)
		if lane < 0 {
			continue
		}
		switch s.Kind {
		case stepPhase:
			end := r.span()
			for _, later := range r.Timeline[i+1:] {
				if later.Kind == stepPhase {
					end = later.At
					break
				}
			}
			x := r.x(s.At)
			b := band{X: x, Width: round(max(r.x(end)-x, 0.5)), Y: plotTop, Height: 18, Class: fmt.Sprintf("phase%d", len(p.Bands)%2), Label: line(s.Text)}
			b.Wide = b.Width > float64(11*len(b.Label)+10)
			p.Bands = append(p.Bands, b)
			words = append(words, fmt.Sprintf("%s from %.1fs", line(s.Text), s.At.Seconds()))
		case stepNote:
		default:
			class := "event"
			if s.Kind == stepStrike {
				class = "strike"
			}
			p.Marks = append(p.Marks, spot{r.x(s.At), p.Lanes[lane].At, class, fmt.Sprintf("%s %s: %s", at(s), line(s.Kind), line(s.Text))})
		}
	}
	p.Caption = "Phases of the drill and what each host recorded. " + strings.Join(words, ", ") + "."
	return p, true
}

// probePlot shows how long each knock took, and when there was no answer.
func (r *Report) probePlot() (plot, bool) {
	if len(r.Probe) == 0 {
		return plot{}, false
	}
	highest, answered := 0.0, 0
	for _, k := range r.Probe {
		if k.OK {
			highest = max(highest, float64(k.Took)/float64(time.Millisecond))
			answered++
		}
	}
	p := r.frame("probe", "probe", plotBottom)
	y := p.scale(highest, "ms")
	line := polyline{Name: "answered", Style: 1}
	var path strings.Builder
	pen := "M"
	knocks := slices.Clone(r.Probe)
	slices.SortStableFunc(knocks, func(a, b Knock) int { return int(a.At - b.At) })
	var silent *band
	for _, k := range knocks {
		x := r.x(k.At)
		if !k.OK {
			pen = "M"
			if silent == nil {
				silent = &band{X: x, Y: plotTop, Height: plotBottom - plotTop, Class: "silent", Label: fmt.Sprintf("no answer from %.2fs on", k.At.Seconds())}
			}
			continue
		}
		if silent != nil {
			silent.Width = round(max(x-silent.X, 1))
			p.Bands = append(p.Bands, *silent)
			silent = nil
		}
		fmt.Fprintf(&path, "%s%g %g", pen, x, y(float64(k.Took)/float64(time.Millisecond)))
		pen = "L"
	}
	if silent != nil {
		silent.Width = round(max(r.x(r.span())-silent.X, 1))
		p.Bands = append(p.Bands, *silent)
	}
	line.Path = path.String()
	p.Lines = []polyline{line}
	p.Caption = fmt.Sprintf("Time until each connection to %s was there; shaded: no answer. %d of %d shown were answered.", r.Spec.Probe, answered, len(knocks))
	if o := r.RTO.Outage; o != nil {
		p.Caption += fmt.Sprintf(" The longest time without an answer was %s.", about(o.Took))
	}
	return p, true
}

// scale makes the value axis up to at least highest, and returns where a value is
// drawn.
func (p *plot) scale(highest float64, unit string) func(float64) float64 {
	step := niceStep(highest / 4)
	top := step * math.Ceil(max(highest*1.05, step)/step)
	y := func(v float64) float64 {
		return round(plotBottom - min(max(v/top, 0), 1)*(plotBottom-plotTop))
	}
	for v := 0.0; v <= top+step/100; v += step {
		p.YTicks = append(p.YTicks, tick{y(v), fmt.Sprintf("%g %s", round3(v), unit)})
	}
	return y
}

// samplePlot has a line for each host that has such values.
func (r *Report) samplePlot(title, unit, what string, value func(Sample) (float64, bool)) (plot, bool) {
	type point struct{ x, v float64 }
	series := map[ownership.HostID][][]point{}
	var hosts []ownership.HostID
	var all []float64
	last := map[ownership.HostID]time.Duration{}
	for _, s := range r.Samples {
		v, ok := value(s)
		if !ok || math.IsNaN(v) {
			continue
		}
		if _, known := series[s.Host]; !known {
			if len(hosts) == 8 {
				continue
			}
			hosts = append(hosts, s.Host)
			series[s.Host] = [][]point{nil}
		}
		if s.At-last[s.Host] > max(20*sampleEvery, r.span()/50) && len(series[s.Host][0]) > 0 {
			series[s.Host] = append(series[s.Host], nil) // it was not so between
		}
		last[s.Host] = s.At
		lines := series[s.Host]
		lines[len(lines)-1] = append(lines[len(lines)-1], point{r.x(s.At), v})
		all = append(all, v)
	}
	if len(all) == 0 {
		return plot{}, false
	}
	p := r.frame(strings.ReplaceAll(title, " ", "-"), title, plotBottom)
	highest := slices.Max(all)
	y := p.scale(highest, unit)
	slices.Sort(hosts)
	for i, h := range hosts {
		var path strings.Builder
		for _, of := range series[h] {
			pen := "M"
			for _, q := range of {
				fmt.Fprintf(&path, "%s%g %g", pen, q.x, y(q.v))
				pen = "L"
			}
		}
		p.Lines = append(p.Lines, polyline{clip(string(h), 32), i%3 + 1, path.String()})
	}
	slices.Sort(all)
	p.Caption = fmt.Sprintf("The %s; median %g %s, at most %g %s.", what, round3(all[len(all)/2]), unit, round3(highest), unit)
	return p, true
}
