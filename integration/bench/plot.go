package main

// The plot of bench checkpoint: two rows of bars, sizes and times, by workload.

import (
	"bytes"
	"encoding/xml"
	"fmt"
)

const (
	plotBar    = 16
	plotGap    = 40
	plotHeight = 180
	plotMargin = 60
)

// plotted is one panel: groups of three bars.
type plotted struct {
	title string
	of    func(r *SavedRow) [3]float64
}

// svg draws the rows; the bars of each panel share a scale.
func (r *SavedReport) svg() []byte {
	panels := []plotted{
		{"image size in MB", func(r *SavedRow) [3]float64 {
			return [3]float64{r.Ours.Bytes / 1e6, r.Migrate.Bytes / 1e6, r.Savevm.Bytes / 1e6}
		}},
		{"time to save in s (migrate without fsync)", func(r *SavedRow) [3]float64 {
			return [3]float64{r.Ours.Synced, r.Migrate.Unsynced, r.Savevm.Synced}
		}},
		{"restore until the guest answers in s (lazy)", func(r *SavedRow) [3]float64 {
			return [3]float64{r.Lazy.Answer, r.Incoming.Answer, r.Loadvm.Answer}
		}},
	}
	colours := [3]string{"#1f77b4", "#ff7f0e", "#7f7f7f"}
	group := 3*plotBar + plotGap
	width := 2*plotMargin + max(4, len(r.Rows))*group
	height := len(panels) * (plotHeight + plotMargin)
	var b bytes.Buffer
	text := func(x, y int, anchor, s string) {
		_, _ = fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="%s">`, x, y, anchor)
		_ = xml.EscapeText(&b, []byte(s))
		_, _ = fmt.Fprintln(&b, `</text>`)
	}
	_, _ = fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="10">`+"\n", width, height+30)
	_, _ = fmt.Fprintln(&b, `<rect width="100%" height="100%" fill="white"/>`)
	for i, p := range panels {
		top := i*(plotHeight+plotMargin) + 30
		bottom := top + plotHeight
		most := 0.0
		for j := range r.Rows {
			for _, v := range p.of(&r.Rows[j]) {
				most = max(most, v)
			}
		}
		text(plotMargin, top-12, "start", p.title)
		for j := range r.Rows {
			left := plotMargin + j*group
			for k, v := range p.of(&r.Rows[j]) {
				if v == 0 { // not measured
					continue
				}
				h := int(ratio(v, most) * (plotHeight - 20))
				x := left + k*plotBar
				_, _ = fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s"/>`+"\n", x, bottom-h, plotBar-2, h, colours[k])
				text(x+plotBar/2, bottom-h-3, "middle", fmt.Sprintf("%.3g", v))
			}
			text(left+3*plotBar/2, bottom+14, "middle", r.Rows[j].Name)
		}
	}
	for k, name := range []string{"understudy", "migrate", "savevm / loadvm"} {
		x := plotMargin + k*140
		_, _ = fmt.Fprintf(&b, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/>`+"\n", x, height+8, colours[k])
		text(x+14, height+17, "start", name)
	}
	_, _ = fmt.Fprintln(&b, `</svg>`)
	return b.Bytes()
}
