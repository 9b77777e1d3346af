// The commands of the workers; main.py builds this program and starts it.
package main

import (
	"fmt"
	"sort"
	"strings"

	"worker/snakepit"
)

type startArgs struct {
	StopWords []string `json:"stop_words"`
}

type frequentArgs struct {
	Text  string `json:"text"`
	Count *int   `json:"count"` // may be left out
}

type rememberArgs struct {
	Name string `json:"name"`
}

// load prepares what all calls need, once in each worker, before it serves: a model, a connection, a table.
func load(args startArgs, ctx *snakepit.Context) error {
	stopWords := map[string]bool{}
	for _, word := range args.StopWords {
		stopWords[word] = true
	}
	ctx.WorkerState["stop words"] = stopWords
	return nil
}

func frequent(args frequentArgs, ctx *snakepit.Context) ([][2]any, error) {
	ignored := ctx.WorkerState["stop words"].(map[string]bool)
	counts := map[string]int{}
	words := []string{}
	for _, word := range strings.Fields(strings.ToLower(args.Text)) {
		if !ignored[word] && counts[word] == 0 {
			words = append(words, word)
		}
		if !ignored[word] {
			counts[word]++
		}
	}
	sort.SliceStable(words, func(i, j int) bool { return counts[words[i]] > counts[words[j]] })
	found := [][2]any{}
	for _, word := range words {
		if args.Count != nil && len(found) == *args.Count || args.Count == nil && len(found) == 3 {
			break
		}
		found = append(found, [2]any{word, counts[word]})
	}
	return found, nil
}

func remember(args rememberArgs, ctx *snakepit.Context) (string, error) {
	ctx.State["name"] = args.Name
	return "noted", nil
}

func greet(args any, ctx *snakepit.Context) (string, error) {
	name, known := ctx.State["name"]
	if !known {
		name = "stranger"
	}
	return fmt.Sprintf("Hello, %v!", name), nil
}

func main() {
	snakepit.OnStart(load)
	snakepit.Command("frequent", frequent)
	snakepit.Doc("frequent", "Return the most frequent words of a text, as [word, how often].")
	snakepit.Command("remember", remember)
	snakepit.Doc("remember", "Keep a name for this session.")
	snakepit.Command("greet", greet)
	snakepit.Doc("greet", "Greet whom this session knows.")
	snakepit.Run()
}
