package config

// Drills, section [drills]: what this cluster lets be done to it.

// Drills are the settings of all drills.
type Drills struct {
	// Strikes lets a drill kill, freeze or cut off a host, for a bounded time;
	// nil is true.
	Strikes *bool `toml:"strikes"`
}

// StrikesAllowed reports whether hosts let themselves be struck.
func (d Drills) StrikesAllowed() bool { return d.Strikes == nil || *d.Strikes }

func (w *writer) drills(d Drills) {
	w.text("", "# Drills: understudy drill run", "[drills]")
	w.option("strikes", d.StrikesAllowed(), true, "a drill may kill, freeze or cut off a host, and undoes it")
}

// setDefaults makes what is said and what is meant the same.
func (d *Drills) setDefaults() {
	if d.StrikesAllowed() {
		d.Strikes = nil
	}
}
