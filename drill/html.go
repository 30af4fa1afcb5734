package drill

// The report as one page of HTML: no script, nothing fetched, plots as SVG. What
// the plots show is also said in words, and in the tables.

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"understudy/ownership"
)

//go:embed report.html
var pageText string

// page is what the template shows.
type page struct {
	*Report
	Title   string
	Began   string
	Took    string
	Figures []figure
	Plots   []plot
	Steps   []pageStep
	Clocks  []pageClock
}

type pageStep struct {
	Phase          bool
	At, Host, Kind string
	Text           string
}

type pageClock struct {
	Host          ownership.HostID
	Offset, Error string
}

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"mark": mark, "about": about,
}).Parse(pageText))

// WriteHTML writes the report as one self-contained page.
func (r *Report) WriteHTML(w io.Writer) error {
	p := page{Report: r, Title: line(r.Spec.title()), Began: r.Began.UTC().Format("2006-01-02 15:04:05 MST"), Took: about(r.Took), Figures: r.figures(), Plots: r.plots()}
	for _, s := range r.Timeline {
		p.Steps = append(p.Steps, pageStep{s.Kind == stepPhase, at(s), string(s.Host), s.Kind, line(s.Text)})
	}
	for _, c := range r.Clocks {
		p.Clocks = append(p.Clocks, pageClock{c.Host, fmt.Sprintf("%+.3fs", c.Offset.Seconds()), about(c.Error)})
	}
	if err := pageTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("write the report as a page: %w", err)
	}
	return nil
}

// plots are the figures for which there is something to show.
func (r *Report) plots() []plot {
	var all []plot
	if p, ok := r.timelinePlot(); ok {
		all = append(all, p)
	}
	if p, ok := r.probePlot(); ok {
		all = append(all, p)
	}
	lag := func(s Sample) (float64, bool) {
		if s.Lag == nil {
			return 0, false
		}
		return float64(*s.Lag) / float64(time.Millisecond), true
	}
	held := func(s Sample) (float64, bool) { return float64(s.HeldBytes) / 1024, s.Role == "primary" }
	if p, ok := r.samplePlot("commit lag", "ms", "age of the newest commit, as the owner says", lag); ok {
		all = append(all, p)
	}
	if p, ok := r.samplePlot("held output", "KiB", "output that waits for its commit", held); ok {
		all = append(all, p)
	}
	return all
}
