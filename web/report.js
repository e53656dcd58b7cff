// What our nodes say of their work, on the nodes: the page shows `ui.PreviewText` only for nodes of its own.
import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"

const PREFIX = "TokenFlow", REPORT = "report", CONTROL = "control_after_generate"
const STEPPING = "TokenFlowLoadFromFolder" // the node that takes another clip with every run
const LINE = 13, LETTER = 6, MARGIN = 14, MOST_LINES = 7 // in pixels, of the page's small text

/** Writes what a node said into a text below its other widgets, which is neither saved nor sent to the server. */
function show(node, output) {
  if (!output?.text) return
  const text = [output.text].flat().join("\n")
  let widget = node.widgets?.find((widget) => widget.name === REPORT)
  if (!widget && !text) return
  if (!widget) {
    widget = app.widgets.STRING(node, REPORT, ["STRING", { multiline: true }], app).widget
    widget.serialize = false // not among the workflow's values, which are told by their places
    widget.options.serialize = false // nor among the prompt's inputs
    widget.options.read_only = true
    if (widget.element) widget.element.readOnly = true
  }
  widget.value = text
  const rows = Math.min(lines(text, node.size[0]), MOST_LINES)
  widget.options.getMinHeight = () => MARGIN + LINE * rows
  widget.options.rows = rows // of a text that is an element of the page (Nodes 2.0)
  app.canvas?.setDirty(true, true)
}

/** About how many lines a text takes in a node of this width. */
function lines(text, width) {
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((line.length * LETTER) / (width - 40))), 0)
}

/** Shows what is known of a graph's nodes: of a workflow that is opened again, or after Undo. */
function showAll(outputs) {
  if (!Object.keys(outputs ?? {}).length) return // as when the page starts, before there is a graph
  const root = app.rootGraph ?? app.graph
  for (const graph of [root, ...(root.subgraphs?.values() ?? [])])
    for (const node of graph.nodes)
      if (node.type.startsWith(PREFIX)) show(node, outputs[graph === root ? node.id : `${graph.id}:${node.id}`])
}

/** The node of an execution id: nodes inside subgraphs have those of all that they lie in before theirs. */
function find(id) {
  const path = String(id).split(":"), last = path.pop()
  const inner = path.reduce((graph, step) => graph?.getNodeById(step)?.subgraph, app.rootGraph ?? app.graph)
  return inner?.getNodeById(last)
}

/** Shows the words of an error on its node until the next run: newer pages say first only that there was one. */
const failed = new Set()
function complain(id, text) {
  const node = find(id)
  if (!node?.type.startsWith(PREFIX)) return
  failed.add(node)
  show(node, { text })
}
api.addEventListener("execution_error", ({ detail }) => complain(detail.node_id, detail.exception_message.trim()))

/** The same for what the server refuses to run, of which the page tells no extension. */
function refused(answer) {
  for (const [id, { errors }] of Object.entries(answer?.node_errors ?? {})) {
    const own = errors.filter(({ type }) => type === "custom_validation_failed")
    const texts = own.map(({ details, extra_info }) => details.replace(`${extra_info.input_name} - `, ""))
    if (texts.length) complain(id, [...new Set(texts)].join("\n"))
  }
}
const queuePrompt = api.queuePrompt
api.queuePrompt = async function () {
  try {
    const answer = await queuePrompt.apply(this, arguments)
    refused(answer)
    return answer
  } catch (error) {
    refused(error.response)
    throw error
  }
}
api.addEventListener("execution_start", () => {
  failed.forEach((node) => show(node, { text: "" }))
  failed.clear()
})

// Long names break in the help's narrow panel.
const style = document.createElement("style")
style.textContent = ".node-help-content { overflow-wrap: anywhere }"
document.head.append(style)

app.registerExtension({
  name: "TokenFlow.Report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(PREFIX)) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      show(this, output)
    }
  },
  nodeCreated(node) {
    // A seed that changes with every run would have the node work anew, mostly for the same result.
    const control = node.comfyClass?.startsWith(PREFIX) && node.widgets?.find((widget) => widget.name === CONTROL)
    if (control) control.value = node.comfyClass === STEPPING ? "increment" : "fixed"
  },
  afterConfigureGraph: () => showAll(app.nodeOutputs),
  onNodeOutputsUpdated: showAll,
})
