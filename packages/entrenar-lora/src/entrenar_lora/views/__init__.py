"""How the reports look in a terminal."""

from entrenar_common.output import View, ViewTable
from entrenar_core.reports import TunePlan, TuneReport
from entrenar_lora.reports.compare import CompareReport
from entrenar_lora.reports.convert import AdapterConversion
from entrenar_lora.reports.extract import AdapterReport
from entrenar_lora.reports.inspect import InspectReport
from entrenar_lora.reports.merge import MergeReport
from entrenar_lora.reports.plan import PlanReport
from entrenar_lora.views import compare, convert, extract, inspect, merge, plan, train

VIEWS: ViewTable = {
    PlanReport: View(plan.plan, quiet=plan.quiet),
    CompareReport: compare.comparison,
    TuneReport: View(train.tuned, quiet=lambda report: [str(report.output_dir)]),
    TunePlan: train.tune_plan,
    MergeReport: View(merge.merge, quiet=lambda report: [str(report.output)]),
    InspectReport: View(inspect.inspection, quiet=inspect.quiet),
    AdapterConversion: View(convert.conversion, quiet=convert.quiet),
    AdapterReport: View(extract.extract, quiet=lambda report: [str(report.output)]),
}
