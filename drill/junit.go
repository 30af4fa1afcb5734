package drill

// The report as JUnit XML, for those whose pipelines read it: a testcase for each
// check and each guarantee.

import (
	"encoding/xml"
	"fmt"
	"io"
	"time"
)

type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       string          `xml:"time,attr"`
	Timestamp  string          `xml:"timestamp,attr"`
	Hostname   string          `xml:"hostname,attr"`
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitTrouble `xml:"failure,omitempty"`
	Error   *junitTrouble `xml:"error,omitempty"`
	Skipped *junitTrouble `xml:"skipped,omitempty"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitTrouble struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr,omitempty"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes the report as JUnit XML.
func (r *Report) WriteJUnit(w io.Writer) error {
	class := "understudy.drill." + string(r.Spec.Kind)
	s := junitSuite{Name: clip(r.Spec.title(), maxText), Time: seconds(r.Took), Timestamp: r.Began.UTC().Format("2006-01-02T15:04:05"), Hostname: clip(string(r.Host), maxText),
		Properties: []junitProperty{{"id", r.ID}, {"guest", r.Spec.Guest}, {"state", string(r.State)}}}
	for _, f := range r.figures() {
		s.Properties = append(s.Properties, junitProperty{f.Name, clip(f.Text, maxText)})
	}
	add := func(c junitCase) {
		s.Tests++
		switch {
		case c.Failure != nil:
			s.Failures++
		case c.Error != nil:
			s.Errors++
		case c.Skipped != nil:
			s.Skipped++
		}
		s.Cases = append(s.Cases, c)
	}
	for _, c := range r.Checks {
		add(junitCase{Class: class, Name: clip(c.Name, maxText), Time: seconds(c.Took), Failure: trouble(c.Verdict, c.Text), Out: clip(c.Output, MaxOutput)})
	}
	for _, g := range r.Guarantees {
		add(junitCase{Class: class, Name: clip(g.Name, maxText), Time: seconds(0), Failure: trouble(g.Verdict, g.Evidence), Out: clip(g.Evidence, maxText)})
	}
	for _, l := range r.Left {
		add(junitCase{Class: class, Name: "nothing of the drill is left", Time: seconds(0), Failure: &junitTrouble{Message: clip(l, maxText), Type: "left"}})
	}
	switch r.State {
	case Held, Failed:
	case Skipped:
		add(junitCase{Class: class, Name: "the drill", Time: seconds(r.Took), Skipped: &junitTrouble{Message: clip(r.Why, maxText)}})
	default:
		add(junitCase{Class: class, Name: "the drill ran to its end", Time: seconds(r.Took), Error: &junitTrouble{Message: clip(r.Why, maxText), Type: string(r.State)}})
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(junitSuites{Suites: []junitSuite{s}}); err != nil {
		return fmt.Errorf("write the report as JUnit XML: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func trouble(v Verdict, text string) *junitTrouble {
	if v == Yes {
		return nil
	}
	return &junitTrouble{Message: clip(text, maxText), Type: string(v)}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
