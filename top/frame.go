package top

// The model as lines for a terminal of its size. What does not fit is left out
// from the bottom: first events, then sparklines, then the hosts.

import (
	"fmt"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
)

// The least size that shows anything.
const (
	leastWidth  = 24
	leastHeight = 4
)

// Frame is the whole screen, without a newline at its end; now is for ages.
func (m *Model) Frame(now time.Time) string {
	if m.width < leastWidth || m.height < leastHeight {
		return m.fit([]string{"too small"}, m.height)
	}
	lines := m.head(now)
	room := m.height - len(lines) - 1
	switch {
	case !m.seen && m.look.Err != nil:
		lines = append(lines, m.pad(m.wrap(clean(m.look.Err.Error())), room)...)
	case !m.seen:
		lines = append(lines, m.pad([]string{"asking the hosts"}, room)...)
	case m.page == help:
		lines = append(lines, m.pad(helpText, room)...)
	case m.page == events:
		lines = append(lines, m.pad(m.events(room), room)...)
	case m.page == detail && m.at() >= 0:
		lines = append(lines, m.pad(m.detail(m.rows[m.at()]), room)...)
	default:
		lines = append(lines, m.pad(m.overview(room), room)...)
	}
	return m.fit(append(lines, m.paint(inverse, "↑↓ guest  enter detail  e events  space freeze  ? help  q quit")), m.height)
}

var helpText = []string{
	"state    whether a backup in sync is fed; in words, for every guest",
	"commit   age of the last committed epoch",
	"pause    how long the guest stands still for a checkpoint, median",
	"lag      from sealing an epoch to the backup's word, median",
	"dirty    pages that the last checkpoint found written",
	"sent/s   bytes sent for them; held: output that waits for a commit",
	"",
	"up, down, k, j, PgUp, PgDn   choose a guest, or scroll events",
	"enter                        all about it; again, or esc: back",
	"e                            events; again, or esc: back",
	"space                        freeze the screen, or go on",
	"q, esc, ctrl+c               quit",
}

// head is what every page begins with: who leads, and how each host is.
func (m *Model) head(now time.Time) []string {
	leader := string(m.look.Cluster.Leader)
	if leader == "" {
		leader = "nobody"
	}
	first := fmt.Sprintf("understudy  log led by %s  lease %v  %s", leader, m.look.Lease, m.look.At.Format(time.TimeOnly))
	if !m.seen {
		first = "understudy"
	}
	switch {
	case m.frozen:
		first += "  FROZEN"
	case m.look.Err != nil && m.seen:
		first = fmt.Sprintf("understudy  NO ANSWER for %v: %s", m.age(now).Round(time.Second), clean(m.look.Err.Error()))
	}
	lines := []string{m.paint(bold, first)}
	if len(m.look.Hosts) == 0 || m.height < 8 {
		return lines
	}
	var hosts []string
	for _, h := range m.look.Hosts {
		name := string(h.Name)
		if h.Witness && name != "witness" {
			name += " (witness)"
		}
		switch {
		case m.look.Err != nil:
			hosts = append(hosts, name+" ?")
		case h.Err != nil:
			hosts = append(hosts, m.paint(red, name+" SILENT"))
		default:
			hosts = append(hosts, m.paint(green, name+" up"))
		}
	}
	return append(lines, strings.Join(hosts, "   "))
}

// column is one of the table; the narrow ones come last and go first.
type column struct {
	title string
	width int
	text  func(m *Model, r row) string
}

var columns = []column{
	{"guest", 12, func(_ *Model, r row) string { return r.name }},
	{"state", 24, func(_ *Model, r row) string { return r.state }},
	{"on > backup", 16, func(m *Model, r row) string { return string(r.owner) + " > " + orNone(string(r.backup)) }},
	{"lag", 7, func(m *Model, r row) string {
		return m.known(r, func(p point) string { return orDash(p.lags, short(p.lag)) })
	}},
	{"pause", 7, func(m *Model, r row) string {
		return m.known(r, func(p point) string { return orDash(p.pauses, short(p.pause)) })
	}},
	{"sent/s", 8, func(m *Model, r row) string { return m.rate(r) }},
	{"commit", 7, func(_ *Model, r row) string {
		if r.at == nil {
			return "?"
		}
		return short(r.at.Primary.EpochAge)
	}},
	{"dirty", 7, func(m *Model, r row) string {
		return m.known(r, func(p point) string { return orDash(p.pages, fmt.Sprint(p.dirty)) })
	}},
	{"held", 8, func(m *Model, r row) string {
		return m.known(r, func(p point) string { return size(float64(p.held)) })
	}},
}

// known is a column's text, or ? while no host says.
func (m *Model) known(r row, text func(p point) string) string {
	if p := m.past[r.name].last(); p.known {
		return text(p)
	}
	return "?"
}

func (m *Model) rate(r row) string {
	p := m.past[r.name].last()
	return orDash(p.rates, size(p.sentRate))
}

// overview is the table, sparklines of the selected guest, and the latest events.
func (m *Model) overview(room int) []string {
	shown := 0
	for width := 0; shown < len(columns) && (width+columns[shown].width <= m.width || shown == 0); shown++ {
		width += columns[shown].width + 1
	}
	lines := []string{m.paint(bold, line(columns[:shown], func(c column) string { return c.title }))}
	first := 0
	visible := max(1, room-1)
	if at := m.at(); at >= visible {
		first = at - visible + 1
	}
	for i, r := range m.rows[first:] {
		if i == visible {
			break
		}
		text := line(columns[:shown], func(c column) string { return c.text(m, r) })
		style := map[level]style{good: green, fair: plainStyle, bad: red}[r.level]
		if r.name == m.selected {
			if m.Colour {
				text = m.paint(inverse, text)
			} else {
				text = ">" + text[:len(text)-1]
			}
			style = plainStyle
		}
		lines = append(lines, m.paint(style, text))
	}
	if len(m.rows) == 0 {
		lines = append(lines, "no guests are configured")
	}
	if at := m.at(); at >= 0 && room-len(lines) >= 6 {
		lines = append(append(lines, ""), m.sparklines(m.rows[at].name)...)
	}
	if left := room - len(lines); left >= 3 && len(m.look.Events) > 0 {
		lines = append(append(lines, ""), m.events(left-1)...)
	}
	return lines
}

// line is a row of the table, a space wider than its columns.
func line(of []column, text func(c column) string) string {
	var b strings.Builder
	for i, c := range of {
		t := ansi.Truncate(clean(text(c)), c.width, "~")
		if i == 0 {
			b.WriteByte(' ')
		}
		b.WriteString(t + strings.Repeat(" ", max(0, c.width-ansi.StringWidth(t))))
		if i < len(of)-1 {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// sparklines are a guest's last minutes.
func (m *Model) sparklines(guest string) []string {
	h := m.past[guest]
	last := h.last()
	marks := plain
	if m.Unicode {
		marks = blocks
	}
	var lines []string
	for _, s := range []struct {
		title, now string
		of         func(p point) (float64, bool)
	}{
		{"pause", orDash(last.pauses, short(last.pause)), func(p point) (float64, bool) { return float64(p.pause), p.pauses }},
		{"lag", orDash(last.lags, short(last.lag)), func(p point) (float64, bool) { return float64(p.lag), p.lags }},
		{"dirty", orDash(last.pages, fmt.Sprint(last.dirty)), func(p point) (float64, bool) { return float64(p.dirty), p.pages }},
		{"sent/s", orDash(last.rates, size(last.sentRate)), func(p point) (float64, bool) { return p.sentRate, p.rates }},
	} {
		if !last.known {
			s.now = "?"
		}
		lines = append(lines, fmt.Sprintf(" %-7s%9s  %s", s.title, s.now, sparkline(h.series(m.width-20, s.of), marks)))
	}
	return lines
}

// events are the newest that fit, or those that were scrolled to.
func (m *Model) events(room int) []string {
	all := m.look.Events[:max(0, len(m.look.Events)-m.offset)]
	var lines []string
	for _, e := range all[max(0, len(all)-room):] {
		guest := ""
		if e.Guest != "" {
			guest = e.Guest + ": "
		}
		lines = append(lines, " "+e.At.Format(time.TimeOnly)+" "+clean(guest+e.Text))
	}
	if len(lines) == 0 {
		lines = []string{" nothing has happened yet"}
	}
	return lines
}

// detail is all there is to say of one guest.
func (m *Model) detail(r row) []string {
	lines := []string{m.paint(bold, fmt.Sprintf("%s: %s, on %s, backup %s", r.name, r.state, orNone(string(r.owner)), orNone(string(r.backup))))}
	add := func(title, format string, a ...any) {
		lines = append(lines, fmt.Sprintf(" %-13s", title)+clean(fmt.Sprintf(format, a...)))
	}
	for _, p := range r.problems {
		add("problem", "%s", p)
	}
	if r.at != nil {
		p := r.at.Primary
		add("for", "%v; generation %d, %s, lease for another %s", p.ModeFor.Round(time.Second), r.at.Log.Generation, r.at.Log.Phase, short(p.LeaseLeft))
		add("last commit", "epoch %d, %s ago", p.Epoch, short(p.EpochAge))
		add("pause", "%s median, %s p99, %s longest", short(p.Pause.Median), short(p.Pause.P99), short(p.Pause.Max))
		add("commit lag", "%s median, %s p99", short(p.Lag.Median), short(p.Lag.P99))
		add("sent", "%s for %s of written pages", size(float64(p.Totals.WireBytes)), size(float64(p.Totals.RawBytes)))
		if x := r.at.Excluded; x != nil {
			add("left out", "%d by map, %d by content, %d copies, %d zero, %d unchanged pages", x.Mapped, x.Indexed, x.Copied, p.Totals.ZeroPages, p.Totals.SamePages)
		}
		add("held output", "%d frames, %s", p.Held, size(float64(p.HeldBytes)))
		if d := r.at.Disks; d != nil {
			add("held writes", "%d, %s of at most %s", d.Writes, size(float64(d.Bytes)), size(float64(d.Limit)))
		}
		if p.LinkError != "" {
			add("last trouble", "%s", p.LinkError)
		}
	}
	if r.standby != nil {
		b := r.standby.Backup
		could := "could not take over"
		if b.InSync && b.Whole {
			could = "could take over"
		}
		add("backup", "%s, epoch %d, committed %s ago: %s", b.State, b.Epoch, short(b.EpochAge), could)
	}
	return append(append(lines, ""), m.sparklines(r.name)...)
}

// style is how text is set off where there is colour.
type style string

const (
	plainStyle style = ""
	bold       style = "1"
	inverse    style = "7"
	red        style = "31"
	green      style = "32"
)

func (m *Model) paint(s style, text string) string {
	if !m.Colour || s == plainStyle {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// pad makes lines as many as there is room for.
func (m *Model) pad(lines []string, room int) []string {
	for len(lines) < room {
		lines = append(lines, "")
	}
	return lines[:max(0, room)]
}

// fit cuts lines to the terminal's size.
func (m *Model) fit(lines []string, height int) string {
	lines = lines[:min(len(lines), max(0, height))]
	for i, l := range lines {
		if !m.Unicode {
			l = ascii.Replace(l)
		}
		lines[i] = strings.TrimRight(ansi.Truncate(l, m.width, ""), " ")
	}
	return strings.Join(lines, "\n")
}

// ascii stands in for what a plain terminal lacks.
var ascii = strings.NewReplacer("↑↓", "up/down", "…", "...", "→", "->", "µ", "u")

// wrap breaks a text into lines.
func (m *Model) wrap(s string) []string {
	return strings.Split(ansi.Wordwrap(s, m.width-1, ""), "\n")
}

// clean takes from a text what would move the cursor: it may come from anywhere.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// orDash is a text, or a dash where there is nothing to say yet.
func orDash(yes bool, s string) string {
	if !yes {
		return "-"
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// short is a duration in at most six characters.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02d", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02d", int(d.Hours()), int(d.Minutes())%60)
}

// size is bytes in at most six characters.
func size(n float64) string {
	for _, unit := range []string{"B", "K", "M", "G", "T"} {
		if n < 1000 && unit == "B" {
			return fmt.Sprintf("%.0fB", n)
		}
		if n < 10 && unit != "B" {
			return fmt.Sprintf("%.1f%s", n, unit)
		}
		if n < 1000 {
			return fmt.Sprintf("%.0f%s", n, unit)
		}
		n /= 1024
	}
	return "lots"
}
