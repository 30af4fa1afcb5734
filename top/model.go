package top

import (
	"cmp"
	"slices"
	"time"
)

// Model is what is shown, and what a person did with keys.
type Model struct {
	// Colour and Unicode are what the terminal can do; what they say is said in
	// words and plain characters as well.
	Colour, Unicode bool
	// Every is the time between two looks; 0: a second.
	Every time.Duration

	width, height int
	look          Look
	seen          bool
	rows          []row
	past          map[string]*history
	selected      string // a guest's name
	page          page
	offset        int // of the events, from the newest
	frozen        bool
}

// page is what fills the screen.
type page int

const (
	overview page = iota
	detail
	events
	help
)

// New returns a model for a terminal of that size.
func New(width, height int) *Model {
	return &Model{width: width, height: height, past: map[string]*history{}}
}

// Resize fits it into another size.
func (m *Model) Resize(width, height int) { m.width, m.height = width, height }

// Take notes a look.
func (m *Model) Take(l Look) {
	if m.frozen {
		return
	}
	if l.Err != nil { // what was known stays, with its age
		m.look.Err = l.Err
		if !m.seen {
			m.look.At = l.At
		}
		return
	}
	m.seen = true
	m.look, m.rows = l, l.rows()
	for _, r := range m.rows {
		if m.past[r.name] == nil {
			m.past[r.name] = &history{}
			m.past[r.name].begin(l.At, cmp.Or(m.Every, time.Second), l.Past[r.name])
		}
		m.past[r.name].add(l.At, r)
	}
	for name := range m.past { // guests that are gone
		if !slices.ContainsFunc(m.rows, func(r row) bool { return r.name == name }) {
			delete(m.past, name)
		}
	}
	if m.at() < 0 && len(m.rows) > 0 {
		m.selected = m.rows[0].name
	}
}

// at is the selected row, -1 if there is none.
func (m *Model) at() int {
	return slices.IndexFunc(m.rows, func(r row) bool { return r.name == m.selected })
}

// Key does what a key is for; it reports that the view is to end.
func (m *Model) Key(name string) (quit bool) {
	switch name {
	case "q", "ctrl+c":
		return true
	case "esc", "backspace":
		if m.page == overview {
			return name == "esc"
		}
		m.page, m.offset = overview, 0
	case "?", "h":
		m.turn(help)
	case "e":
		m.turn(events)
	case "enter":
		if m.at() >= 0 {
			m.turn(detail)
		}
	case "space", " ", "p":
		m.frozen = !m.frozen
	case "down", "j":
		m.move(1)
	case "up", "k":
		m.move(-1)
	case "pgdown":
		m.move(max(1, m.height-4))
	case "pgup":
		m.move(-max(1, m.height-4))
	}
	return false
}

// turn shows a page, or goes back from it.
func (m *Model) turn(to page) {
	if m.page == to {
		to = overview
	}
	m.page, m.offset = to, 0
}

func (m *Model) move(by int) {
	if m.page == events {
		m.offset = min(max(0, m.offset-by), max(0, len(m.look.Events)-1))
		return
	}
	if i := m.at(); i >= 0 {
		m.selected = m.rows[min(max(0, i+by), len(m.rows)-1)].name
	}
}

// age is how old the look is.
func (m *Model) age(now time.Time) time.Duration { return max(0, now.Sub(m.look.At)) }
