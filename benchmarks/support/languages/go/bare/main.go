// What the start of a Go program costs by itself.
package main

func main() {}
