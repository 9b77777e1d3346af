package main

import "snakepit"

type MirrorArgs struct {
	Value any `json:"value"`
}

func main() {
	snakepit.Command("mirror", func(args MirrorArgs, ctx *snakepit.Context) (any, error) {
		return args.Value, nil
	})
	snakepit.Run()
}
