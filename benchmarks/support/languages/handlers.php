<?php

command('mirror', fn (mixed $value) => $value);
