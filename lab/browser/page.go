package browser

// A page, as a person has it: what it says, what it can be made to do with a
// keyboard, and what it looks like. It also notes what a person does not see:
// errors on its console, and each address that it asked for.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Page is one tab.
type Page struct {
	b       *Browser
	session string
	target  string

	mu       sync.Mutex
	console  []string
	requests []string
}

// Open opens an empty page.
func (b *Browser) Open(ctx context.Context) (*Page, error) {
	var made struct{ TargetID string }
	if err := b.call(ctx, "", "Target.createTarget", map[string]any{"url": "about:blank"}, &made); err != nil {
		return nil, err
	}
	var attached struct{ SessionID string }
	if err := b.call(ctx, "", "Target.attachToTarget", map[string]any{"targetId": made.TargetID, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	p := &Page{b: b, session: attached.SessionID, target: made.TargetID}
	b.hear(p.session, p.heard)
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		if err := p.Do(ctx, domain+".enable", nil, nil); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close closes the page.
func (p *Page) Close(ctx context.Context) error {
	return p.b.call(ctx, "", "Target.closeTarget", map[string]any{"targetId": p.target}, nil)
}

// Do asks for a method of the DevTools protocol.
func (p *Page) Do(ctx context.Context, method string, params, result any) error {
	return p.b.call(ctx, p.session, method, params, result)
}

func (p *Page) heard(method string, params json.RawMessage) {
	var e struct {
		Type  string
		Entry struct{ Level, Text, URL string }
		Args  []struct {
			Value       any
			Description string
		}
		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
		Request struct{ URL string }
	}
	if json.Unmarshal(params, &e) != nil {
		return // none of those below
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case method == "Runtime.consoleAPICalled" && (e.Type == "error" || e.Type == "warning" || e.Type == "assert"):
		line := e.Type
		for _, a := range e.Args {
			line += fmt.Sprintf(" %v%s", a.Value, a.Description)
		}
		p.console = append(p.console, line)
	case method == "Runtime.exceptionThrown":
		p.console = append(p.console, "exception "+e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
	case method == "Log.entryAdded" && e.Entry.Level != "verbose" && e.Entry.Level != "info":
		p.console = append(p.console, strings.TrimSpace(e.Entry.Level+" "+e.Entry.Text+" "+e.Entry.URL))
	case method == "Network.requestWillBeSent":
		p.requests = append(p.requests, e.Request.URL)
	}
}

// Console returns the warnings and errors so far, and forgets them.
func (p *Page) Console() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := p.console
	p.console = nil
	return lines
}

// Requests returns each address that was asked for so far.
func (p *Page) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.requests...)
}

// Go goes to an address and waits until the page is loaded.
func (p *Page) Go(ctx context.Context, url string) error {
	var went struct{ ErrorText string }
	if err := p.Do(ctx, "Page.navigate", map[string]any{"url": url}, &went); err != nil {
		return err
	}
	if went.ErrorText != "" {
		return fmt.Errorf("go to %s: %s", url, went.ErrorText)
	}
	return p.Await(ctx, "loaded", "document.readyState === 'complete'")
}

// Eval runs JavaScript in the page, waits for it if it is a promise, and puts its
// value into result, if that is not nil.
func (p *Page) Eval(ctx context.Context, script string, result any) error {
	var out struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := p.Do(ctx, "Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true, "userGesture": true}, &out)
	if err != nil {
		return err
	}
	if e := out.ExceptionDetails; e != nil {
		return fmt.Errorf("%.200s: %s %s", script, e.Text, e.Exception.Description)
	}
	if result == nil || len(out.Result.Value) == 0 {
		return nil
	}
	return json.Unmarshal(out.Result.Value, result)
}

// Text is what the page, or the part of it that a selector names, shows.
func (p *Page) Text(ctx context.Context, selector string) (string, error) {
	var text string
	err := p.Eval(ctx, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector), &text)
	return text, err
}

// Await waits until a script is true of the page. If ctx ends before, the error
// has what the page shows.
func (p *Page) Await(ctx context.Context, what, script string) error {
	for {
		var yes bool
		err := p.Eval(ctx, "Boolean("+script+")", &yes)
		if err == nil && yes {
			return nil
		}
		select {
		case <-time.After(30 * time.Millisecond):
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("the page is not %s: %w; it shows:\n%s", what, err, p.shows(ctx))
		}
	}
}

// shows is what the page shows, for an error; ctx may have ended.
func (p *Page) shows(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	text, err := p.Text(ctx, "body")
	if err != nil {
		return err.Error()
	}
	return text
}

// Size makes the window so large, in CSS pixels; mobile as on a phone, which has
// two of its own for each, and fingers.
func (p *Page) Size(ctx context.Context, width, height int, mobile bool) error {
	scale := 1
	if mobile {
		scale = 2
	}
	return p.Do(ctx, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}, nil)
}

// Prefer makes a media feature, such as prefers-color-scheme, have a value.
func (p *Page) Prefer(ctx context.Context, feature, value string) error {
	return p.Do(ctx, "Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": feature, "value": value}}}, nil)
}

// keys are those that are not a character of text.
var keys = map[string]int{"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, " ": 32}

// Press presses and releases a key, by its name in the DOM.
func (p *Page) Press(ctx context.Context, key string) error {
	params := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": keys[key]}
	switch key {
	case "Enter":
		params["text"] = "\r"
	case " ":
		params["text"], params["code"] = " ", "Space"
	}
	if err := p.Do(ctx, "Input.dispatchKeyEvent", params, nil); err != nil {
		return err
	}
	params["type"] = "keyUp"
	delete(params, "text")
	return p.Do(ctx, "Input.dispatchKeyEvent", params, nil)
}

// Type types text where the focus is.
func (p *Page) Type(ctx context.Context, text string) error {
	return p.Do(ctx, "Input.insertText", map[string]any{"text": text}, nil)
}

// Picture writes what the page looks like into a PNG file: all of it, or what is
// in the window.
func (p *Page) Picture(ctx context.Context, file string, all bool) error {
	var shot struct{ Data string }
	if err := p.Do(ctx, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": all}, &shot); err != nil {
		return err
	}
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		return fmt.Errorf("the picture of the page: %w", err)
	}
	return os.WriteFile(file, png, 0o600)
}
