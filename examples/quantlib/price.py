"""Prices American put options on one share, by their strikes: by many ways that the share may go."""

import sys

import QuantLib as ql

PATHS = 8_000
TODAY = ql.Date(15, 5, 2020)


def price(strike):
    """By the least squares of Longstaff and Schwartz; the seed makes it the same each time."""
    days, calendar = ql.Actual365Fixed(), ql.TARGET()
    ql.Settings.instance().evaluationDate = TODAY
    share = ql.QuoteHandle(ql.SimpleQuote(36.0))
    rate = ql.YieldTermStructureHandle(ql.FlatForward(TODAY, 0.06, days))
    dividend = ql.YieldTermStructureHandle(ql.FlatForward(TODAY, 0.0, days))
    volatility = ql.BlackVolTermStructureHandle(ql.BlackConstantVol(TODAY, calendar, 0.20, days))
    process = ql.BlackScholesMertonProcess(share, dividend, rate, volatility)
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Put, strike), ql.AmericanExercise(TODAY, TODAY + ql.Period(1, ql.Years))
    )
    option.setPricingEngine(
        ql.MCAmericanEngine(process, "pseudorandom", timeSteps=50, requiredSamples=PATHS, seed=7)
    )
    return option.NPV()


print(sys.argv[1], price(float(sys.argv[1])))
