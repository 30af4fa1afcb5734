package simulation

// This file counts which fault has struck at which step, and prints it.

import (
	"fmt"
	"io"
	"slices"
)

// Cells counts, for each step of the protocol, how often it was reached and how
// often each fault has struck at it.
type Cells struct {
	reached [steps]uint64
	struck  [steps][faultKinds]uint64
}

func (c *Cells) add(d *Cells) {
	for s := range steps {
		c.reached[s] += d.reached[s]
		for f := range faultKinds {
			c.struck[s][f] += d.struck[s][f]
		}
	}
}

// Count returns the number of cells that can be, and how many of them were
// visited.
func (c *Cells) Count() (possible, visited int) {
	for _, x := range allCells() {
		possible++
		if c.struck[x.step][x.fault] > 0 {
			visited++
		}
	}
	return possible, visited
}

// Empty names the cells that can be and were not visited, at most limit of them
// (0: all).
func (c *Cells) Empty(limit int) (names []string) {
	for _, x := range allCells() {
		if c.struck[x.step][x.fault] == 0 && (limit == 0 || len(names) < limit) {
			names = append(names, fmt.Sprintf("%v × %s", x.step, faultTable[x.fault].short))
		}
	}
	return names
}

// Row is a step in a report.
type Row struct {
	Step    string            `json:"step"`
	Reached uint64            `json:"reached"`
	Struck  map[string]uint64 `json:"struck"` // by fault; those that cannot be are missing
}

// Rows returns the whole table.
func (c *Cells) Rows() (rows []Row) {
	for s := range steps {
		r := Row{Step: s.String(), Reached: c.reached[s], Struck: map[string]uint64{}}
		for f := range faultKinds {
			if impossible(s, f) == "" {
				r.Struck[faultTable[f].short] = c.struck[s][f]
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// Print writes the table, the meaning of its columns, and why cells are "-".
func (c *Cells) Print(w io.Writer) error {
	p := printer{w: w}
	p.f("%-32s%10s", "step", "reached")
	for f := range faultKinds {
		p.f("%8s", faultTable[f].short)
	}
	var reasons []string
	for s := range steps {
		p.f("\n%-32s%10d", s, c.reached[s])
		for f := range faultKinds {
			if why := impossible(s, f); why != "" {
				p.f("%8s", "-")
				if !slices.Contains(reasons, why) {
					reasons = append(reasons, why)
				}
				continue
			}
			p.f("%8d", c.struck[s][f])
		}
	}
	p.f("\n\n")
	for f := range faultKinds {
		p.f("%-8s%s\n", faultTable[f].short, f)
	}
	for _, why := range reasons {
		p.f("%-8s%s\n", "-", why)
	}
	return p.err
}

// printer writes until the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) f(format string, a ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, a...)
	}
}
