// Package dashboard holds the files of the page that shows a pair of hosts in a
// browser: plain HTML, CSS and JavaScript modules, embedded as they are. They
// hold no data; the page asks the status endpoint it came from for that.
//
//	main.js      starts the page: where it is (route), what it knows (model), what it shows
//	  api.js, token.js, stream.js ← sse.js   ask the endpoint, and hear from it
//	  model.js ← state.js, words.js          what is known, how old it is, and what that means
//	  past.js ← samples.js, scale.js ← plot.js, plots.js   what the plots show
//	  picture.js ← scene.js                  the pair as a picture
//	  guest.js, overview.js, events.js, hosts.js   parts of the page
//	  drills.js, report.js                   the drills that were run, and one's report
//	  actions.js → question.js               what an operator may do, and what follows from it
//	  dom.js, units.js                       elements; numbers for people
//
// What is left of an arrow touches the document or the network, what is right of
// it is pure, and tried by itself.
package dashboard

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"path"
)

//go:embed *.html *.css *.js *.svg
var embedded embed.FS

// Index is the name of the file that is the page.
const Index = "index.html"

// File is one of the page's files.
type File struct {
	Name string
	Type string // its media type
	ETag string // quoted: another one whenever the content is
	Body []byte
}

// types are the media types of the files, by their suffix.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// Files returns all of them, by name. The error names a file of which a browser
// would not know what it is.
func Files() (map[string]File, error) {
	entries, err := embedded.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("the dashboard's files: %w", err)
	}
	all := make(map[string]File, len(entries))
	for _, e := range entries {
		body, err := embedded.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("the dashboard's file %s: %w", e.Name(), err)
		}
		kind, known := types[path.Ext(e.Name())]
		if !known {
			return nil, fmt.Errorf("the dashboard's file %s has no media type", e.Name())
		}
		sum := sha256.Sum256(body)
		all[e.Name()] = File{Name: e.Name(), Type: kind, ETag: `"` + hex.EncodeToString(sum[:16]) + `"`, Body: body}
	}
	return all, nil
}
