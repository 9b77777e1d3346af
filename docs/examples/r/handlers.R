# A model lives in the session that fitted it.

commands$fit <- function(args, ctx) {
  ctx$state$model <- lm(as.formula(args[["formula"]]), data = datasets::mtcars)
  list(coefficients = as.list(coef(ctx$state$model)), r_squared = summary(ctx$state$model)$r.squared)
}

commands$predict <- function(args, ctx) {
  if (is.null(ctx$state$model)) stop("fit a model first")
  interval <- predict(ctx$state$model, as.data.frame(args), interval = "prediction")
  as.list(interval[1, ])
}
