package main

// What a shell offers after a tab: the names of guests and hosts come from the
// configuration, those of drills too; a command says in its Use line where they go.

import (
	"strings"

	"github.com/spf13/cobra"

	"understudy/config"
)

// namers list the names that stand for a word of a Use line.
var namers = map[string]func(c *config.Config) []string{
	"GUEST": func(c *config.Config) (names []string) {
		for _, g := range c.Guests {
			names = append(names, g.Name+"\tguest of "+g.Host+" and "+g.Backup)
		}
		return names
	},
	"HOST": hostNames,
	"OLD":  hostNames, // NEW is in the configuration by then, too
	"NEW":  hostNames,
}

// namedBy are the words that mean something else in one command, by its path.
var namedBy = map[string]func(c *config.Config) []string{"understudy drill run": drillNames}

func drillNames(c *config.Config) (names []string) {
	for _, d := range c.Drill {
		names = append(names, d.Name+"\t"+string(d.Kind)+" of "+d.Guest)
	}
	return names
}

// flagNames are the names that a flag of any command takes, and flagWords the words,
// where it is not another thing there (demo --guest).
var (
	flagNames = map[string]func(c *config.Config) []string{"guest": namers["GUEST"]}
	flagWords = map[string][]string{
		"kind":   {string(config.DrillSwitchover), string(config.DrillFailover), string(config.DrillBubble)},
		"fault":  {string(config.FaultKill), string(config.FaultFreeze), string(config.FaultCut)},
		"format": {"table", "json", "junit", "html"},
	}
)

// hostFlags are the flags whose value is a host's name.
var hostFlags = []string{"host", "at"}

func hostNames(c *config.Config) (names []string) {
	for _, h := range c.Hosts {
		role := "host"
		if h.Witness {
			role = "witness"
		}
		names = append(names, h.Name+"\t"+role+" at "+h.Address)
	}
	return names
}

// complete lets a shell complete every command beneath root.
func (f *common) complete(root *cobra.Command) {
	for _, name := range hostFlags {
		if root.PersistentFlags().Lookup(name) != nil {
			_ = root.RegisterFlagCompletionFunc(name, func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
				return f.names(hostNames, begun)
			}) // fails for a flag that is not there
		}
	}
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.MarkPersistentFlagFilename("config", "toml")
	f.completeArgs(root)
}

func (f *common) completeArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		f.completeArgs(sub)
	}
	for name, of := range flagNames {
		if flag := c.LocalFlags().Lookup(name); flag != nil && flag.DefValue == "" {
			_ = c.RegisterFlagCompletionFunc(name, func(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
				return f.names(of, begun)
			})
		}
	}
	for name, words := range flagWords {
		if c.LocalFlags().Lookup(name) != nil {
			_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	words := strings.Fields(c.Use)[1:]
	if c.ValidArgsFunction != nil || c.HasSubCommands() {
		return
	}
	named := namedBy[c.CommandPath()]
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(words) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		word := strings.Trim(words[len(args)], "[].")
		if word == "FILE" {
			return nil, cobra.ShellCompDirectiveDefault
		}
		if named != nil && len(args) == 0 {
			return f.names(named, begun)
		}
		return f.names(namers[word], begun)
	}
}

// names are those of the configuration that begin so; none without one.
func (f *common) names(of func(c *config.Config) []string, begun string) (found []string, d cobra.ShellCompDirective) {
	d = cobra.ShellCompDirectiveNoFileComp
	c, err := config.Load(f.config)
	if err != nil || of == nil {
		return nil, d
	}
	for _, n := range of(c) {
		if strings.HasPrefix(n, begun) {
			found = append(found, n)
		}
	}
	return found, d
}
