module worker

go 1.19

require snakepit v0.0.0

replace snakepit => ../../../../bridges/go
