package top

// The model in a terminal: bubbletea draws frames and reads keys; a look is
// taken every so often, one at a time.

import (
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Options are how a view runs.
type Options struct {
	Source Source
	// Every is the time between two looks, and the longest one may take.
	Every   time.Duration
	Colour  bool
	Unicode bool
	// In and Out are the terminal; Environ is that of the process.
	In      io.Reader
	Out     io.Writer
	Environ []string
}

// Run shows the view until a key, a signal or ctx ends it; the terminal is then
// as it was.
func Run(ctx context.Context, o Options) error {
	v := &view{ctx: ctx, Options: o, model: New(0, 0)}
	v.model.Colour, v.model.Unicode, v.model.Every = o.Colour, o.Unicode, o.Every
	p := tea.NewProgram(v, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithEnvironment(o.Environ))
	if _, err := p.Run(); err != nil && ctx.Err() == nil && !errors.Is(err, tea.ErrInterrupted) {
		return err // else that is how one leaves it
	}
	return nil
}

// Once returns one frame for a terminal of that width, as high as it needs to be;
// it takes two looks, so that there are rates.
func Once(ctx context.Context, o Options, width int) (string, error) {
	m := New(width, 1000)
	m.Colour, m.Unicode, m.Every = o.Colour, o.Unicode, o.Every
	for i := range 2 {
		if i > 0 {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(o.Every):
			}
		}
		l := look(ctx, o)
		if l.Err != nil {
			return "", l.Err
		}
		m.Take(l)
	}
	lines := append(m.head(time.Now()), m.overview(3+len(m.rows)+onceRoom)...)
	return m.fit(lines, len(lines)), nil
}

// onceRoom is what Once has below the table: sparklines and some events.
const onceRoom = 16

func look(ctx context.Context, o Options) Look {
	ctx, cancel := context.WithTimeout(ctx, max(o.Every, time.Second))
	defer cancel()
	return o.Source.Look(ctx)
}

// view is the model as bubbletea has it.
type view struct {
	Options
	ctx   context.Context
	model *Model
}

type (
	looked Look
	due    struct{}
)

// Init takes the first look.
func (v *view) Init() tea.Cmd { return v.next }

func (v *view) next() tea.Msg { return looked(look(v.ctx, v.Options)) }

// Update takes what happened.
func (v *view) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		v.model.Resize(msg.Width, msg.Height)
		// A terminal may lay what it shows out anew when its size changes, some of it
		// after a frame of ours: what is on it then is not what was drawn.
		return v, tea.ClearScreen
	case looked:
		v.model.Take(Look(msg))
		return v, tea.Tick(v.Every, func(time.Time) tea.Msg { return due{} })
	case due:
		return v, v.next
	case tea.KeyPressMsg:
		if v.model.Key(msg.String()) {
			return v, tea.Quit
		}
	}
	return v, nil
}

// View is the frame.
func (v *view) View() tea.View {
	s := tea.NewView(v.model.Frame(time.Now()))
	s.AltScreen = true
	s.WindowTitle = "understudy top"
	return s
}
